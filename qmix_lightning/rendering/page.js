// Show recorded episodes: one slider moves every panel of every episode. The figures are in #episodes.
"use strict";

const episodes = JSON.parse(document.getElementById("episodes").textContent);
const slider = document.getElementById("step");
const playButton = document.getElementById("play");
const plain = { displayModeBar: false, responsive: true };
const ink = "#262a30", grey = "#8a8f99"; // no agent's colour
const font = { family: "system-ui, sans-serif", size: 12, color: ink };
const margins = { l: 64, r: 12, t: 8, b: 40 };

function element(parent, tag, attributes, text) {
  const made = document.createElement(tag);
  Object.assign(made, attributes || {});
  if (text !== undefined) made.textContent = text;
  parent.appendChild(made);
  return made;
}

function number(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

function panel(parent, place, title, note) {
  const made = element(parent, "section", { className: "panel" });
  made.style.setProperty("--place", place);
  element(made, "h3", {}, title);
  if (note) element(made, "p", {}, note);
  return made;
}

function layout(height, more) {
  return Object.assign({
    height, margin: margins, font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    dragmode: false, hovermode: "closest", legend: { orientation: "h", y: 1.15, x: 0 },
  }, more);
}

function stepAxis(length) {
  return { title: { text: "step" }, range: [-0.5, length + 0.5], fixedrange: true, zeroline: false,
    dtick: length > 10 ? undefined : 1 };
}

function cursor(t) {
  return { type: "line", x0: t, x1: t, yref: "paper", y0: 0, y1: 1, line: { color: ink, width: 2 } };
}

// Where each action of an agent stands between its worst and its best legal one, 0 to 1.
function shares(values) {
  const legal = values.filter((v) => v !== null);
  const low = Math.min(...legal), high = Math.max(...legal);
  return values.map((v) => (v === null ? null : high > low ? (v - low) / (high - low) : 1));
}

class Run {
  constructor(parent, episode) {
    this.episode = episode;
    this.agents = episode.agents.map((_, i) => i);
    const box = element(parent, "article", { className: "run" });
    if (episodes.length > 1) element(box, "h2", {}, episode.title);
    element(box, "p", {}, episode.summary);
    const panels = element(box, "div", { className: "panels" });
    this.addFrame(panels);
    this.addWords(panels);
    this.addValues(panels);
    if (episode.sensitivities) this.addSensitivities(panels);
    this.addReturns(panels);
    this.addRewards(panels);
  }

  addFrame(parent) {
    const made = panel(parent, "frame", "What happens");
    this.now = element(made, "p", { className: "now" });
    this.frame = element(made, "img", { className: "frame", alt: "" });
  }

  addWords(parent) {
    const made = panel(parent, "words", "What each agent does next");
    const table = element(made, "table", { className: "words" });
    const head = element(element(table, "thead"), "tr");
    const unit = this.episode.probabilities ? "chance" : "value";
    for (const word of ["agent", "action", unit, "best other"]) element(head, "th", { scope: "col" }, word);
    const body = element(table, "tbody");
    this.rows = this.agents.map((i) => {
      const row = element(body, "tr");
      const name = element(row, "td");
      element(name, "span", { className: "dot" }).style.background = this.episode.colours[i];
      name.append(this.episode.agents[i]);
      return { row, cells: [element(row, "td"), element(row, "td"), element(row, "td")] };
    });
  }

  addValues(parent) {
    const { agents, actions, probabilities } = this.episode;
    const what = probabilities ? "How likely each action is" : "What each agent thinks of its legal actions";
    const note = "Darker: better, within an agent's row. Blank: not legal. Framed: what it does.";
    const made = panel(parent, "values", what, note);
    const same = actions.every((words) => words.join() === actions[0].join());
    const most = Math.max(...actions.map((words) => words.length));
    const long = same && Math.max(...actions[0].map((word) => word.length)) > 5;
    const columns = [...Array(most).keys()];
    this.values = element(made, "div", { className: "values" });
    Plotly.newPlot(this.values, [{
      type: "heatmap", x: columns, y: this.agents, z: [], text: [], customdata: [], hoverongaps: false,
      colorscale: [[0, "#f3efe2"], [1, "#1f77b4"]], zmin: 0, zmax: 1, showscale: false, xgap: 2, ygap: 2,
      hovertemplate: "%{customdata}<extra></extra>", textfont: { size: 11 },
    }], layout((long ? 90 : 70) + 30 * agents.length, {
      margin: { ...margins, l: 84, b: long ? 76 : 56 },
      xaxis: { tickvals: columns, ticktext: same ? actions[0] : columns, range: [-0.5, most - 0.5], fixedrange: true,
        tickangle: long ? -40 : 0, showgrid: false, zeroline: false },
      yaxis: { tickvals: this.agents, ticktext: agents, range: [agents.length - 0.5, -0.5], fixedrange: true,
        showgrid: false, zeroline: false },
    }), plain);
  }

  addSensitivities(parent) {
    const { agents, colours, sensitivities } = this.episode;
    const flat = sensitivities.flat();
    const low = Math.min(0, ...flat), high = Math.max(0, ...flat, 1e-9);
    const made = panel(parent, "slopes", "How much the team listens to whom", "By how much the team's value Q_tot rises with each agent's own: dQ_tot / dQ_i.");
    this.slopes = element(made, "div", { className: "sensitivities" });
    Plotly.newPlot(this.slopes, [{
      type: "bar", orientation: "h", y: this.agents, x: this.agents.map(() => 0), marker: { color: colours },
      textposition: "auto", hovertemplate: "%{x}<extra></extra>",
    }], layout(70 + 30 * agents.length, {
      margin: { ...margins, l: 84 },
      xaxis: { range: [low * 1.1, high * 1.1], fixedrange: true },
      yaxis: { tickvals: this.agents, ticktext: agents, range: [agents.length - 0.5, -0.5], fixedrange: true },
    }), plain);
  }

  addReturns(parent) {
    const { returns, q_tot: total } = this.episode;
    const steps = returns.map((_, t) => t);
    const title = total ? "What the team expects, and what follows" : "What follows";
    const made = panel(parent, "returns", title, `The discounted return that follows (discount ${this.episode.gamma})`
      + (total ? ", beside Q_tot, what the team expected of it." : "."));
    const lines = [{ x: steps, y: returns, name: "return that follows", mode: "lines+markers", line: { color: grey } }];
    if (total) lines.unshift({ x: steps, y: total, name: "Q_tot", mode: "lines+markers", line: { color: ink } });
    lines.forEach((line) => { line.marker = { size: steps.length > 60 ? 3 : 6 }; });
    this.expected = element(made, "div", { className: "returns" });
    Plotly.newPlot(this.expected, lines, layout(250, {
      showlegend: true, margin: { ...margins, t: 28 },
      xaxis: stepAxis(returns.length), yaxis: { fixedrange: true },
    }), plain);
    this.expected.on("plotly_click", (event) => move(event.points[0].x));
  }

  addRewards(parent) {
    const { rewards, deaths, agents } = this.episode;
    const note = deaths.length ? "A cross marks a step in which an agent fell." : "";
    const made = panel(parent, "rewards", deaths.length ? "Rewards and deaths" : "Rewards", note);
    this.earned = element(made, "div", { className: "rewards" });
    const fallen = { x: deaths.map(([t]) => t), y: deaths.map(() => 0), text: deaths.map(([, i]) => agents[i]),
      mode: "markers", marker: { symbol: "x", size: 11, color: "#c03c32" }, hovertemplate: "%{text} fell<extra></extra>" };
    Plotly.newPlot(this.earned, [{ type: "bar", x: rewards.map((_, t) => t), y: rewards,
      marker: { color: grey } }, fallen], layout(220, {
      xaxis: stepAxis(rewards.length), yaxis: { fixedrange: true },
    }), plain);
    this.earned.on("plotly_click", (event) => move(event.points[0].x));
  }

  // Show step t; an episode that is over stays at its end.
  show(step) {
    const { episode } = this;
    const t = Math.min(step, episode.rewards.length);
    const over = t >= episode.rewards.length;
    this.frame.src = episode.frames[t];
    this.frame.alt = `${episode.title}, step ${t}`;
    const before = episode.rewards.slice(0, t);
    this.now.textContent = t === 0 ? "before the first step"
      : `reward ${number(before[t - 1])}, ${number(before.reduce((sum, r) => sum + r, 0))} so far${over ? ": the end" : ""}`;
    this.showWords(t, over);
    const decided = over ? t - 1 : t; // after the end: the last decision, faded
    for (const chart of [this.values, this.slopes]) if (chart) chart.classList.toggle("over", over);
    this.showValues(decided);
    if (this.slopes) {
      const slopes = episode.sensitivities[decided];
      Plotly.restyle(this.slopes, { x: [slopes], text: [slopes.map(number)] }, [0]);
    }
    for (const chart of [this.expected, this.earned]) Plotly.relayout(chart, { shapes: [cursor(t)] });
  }

  showWords(t, over) {
    const { episode } = this;
    this.rows.forEach(({ row, cells }, i) => {
      const alive = episode.alive[t][i] && !over;
      row.className = alive ? "" : "dead";
      const values = alive ? episode.values[t][i] : [];
      const taken = alive ? episode.taken[t][i] : null;
      const better = (b, v, a) => (v !== null && a !== taken && (b < 0 || v > values[b]) ? a : b);
      const other = values.reduce(better, -1);
      const words = episode.actions[i];
      cells[0].textContent = alive ? words[taken] : over ? "the episode is over" : "not alive";
      cells[1].textContent = alive ? number(values[taken]) : "";
      cells[2].textContent = !alive ? "" : other < 0 ? "no other" : `${words[other]} ${number(values[other])}`;
    });
  }

  showValues(t) {
    const { episode } = this;
    const rows = this.agents.map((i) => episode.values[t][i]);
    const wide = this.values.clientWidth / Math.max(...rows.map((row) => row.length)) > 42;
    const said = rows.map((row, i) => row.map((v, a) => `${episode.agents[i]}, ${episode.actions[i][a]}: ${v}`));
    const frames = this.agents.filter((i) => episode.alive[t][i]).map((i) => {
      const a = episode.taken[t][i];
      return { type: "rect", x0: a - 0.46, x1: a + 0.46, y0: i - 0.44, y1: i + 0.44, line: { color: ink, width: 3 } };
    });
    Plotly.update(this.values, {
      z: [rows.map(shares)], text: [rows.map((row) => row.map(number))], customdata: [said],
      texttemplate: wide ? "%{text}" : "",
    }, { shapes: frames }, [0]);
  }
}

const box = document.getElementById("runs");
document.body.className = episodes.length > 1 ? "two" : "one";
const runs = episodes.map((episode) => new Run(box, episode));
const last = Math.max(...episodes.map((episode) => episode.rewards.length));
slider.max = last;

function show() {
  const t = Number(slider.value);
  runs.forEach((run) => run.show(t));
  document.getElementById("where").textContent = `step ${t} of ${last}`;
  slider.setAttribute("aria-valuetext", `step ${t} of ${last}`);
}

function move(t) {
  slider.value = t;
  show();
}

let timer = null;
function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => {
    if (Number(slider.value) >= last) play(false);
    else move(Number(slider.value) + 1);
  }, last < 10 ? 1000 : 250) : null;
  playButton.textContent = on ? "Pause" : "Play";
  playButton.setAttribute("aria-pressed", String(on));
}

function toggle() {
  if (timer === null && Number(slider.value) >= last) move(0);
  play(timer === null);
}

slider.addEventListener("input", show);
playButton.addEventListener("click", toggle);
document.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -last, End: last };
  if (event.key === " " && event.target !== playButton) toggle();
  else if (event.key in moves && event.target !== slider) move(Number(slider.value) + moves[event.key]);
  else return;
  event.preventDefault();
});
show();
