"""Know what other codes call a setting, for messages about unknown keys."""

from __future__ import annotations

__all__ = ["meant_by"]

_KEYS = {
    "total_env_steps": "epochs max_epochs n_epochs steps max_steps num_steps total_timesteps t_max iterations",
    "eval_episodes": "test_nepisode n_eval_episodes num_eval_episodes",
    "eval_interval": "test_interval eval_freq eval_every",
    "checkpoint_interval": "save_model save_model_interval save_interval save_freq save_every",
    "run_dir": "output_dir out_dir log_dir logdir save_dir output outdir",
    "ckpt_path": "resume resume_from checkpoint checkpoint_path load_model",
    "num_threads": "threads n_threads",
    "rollout.num_envs": "n_envs envs num_envs batch_size_run n_rollout_threads env_num nenvs",
    "rollout.num_workers": "workers n_workers num_workers",
    "optimizer.lr": "lr learning_rate alpha_lr step_size",
    "optimizer.max_grad_norm": "grad_norm_clip clip grad_clip max_grad",
    "replay.batch_size": "batch_size bs minibatch_size",
    "replay.capacity": "buffer_size replay_size memory_size capacity buffer_capacity",
    "algorithm.gamma": "gamma discount discount_factor",
    "algorithm.target_update_every": "target_update_interval target_network_update_freq",
    "algorithm.n_steps": "n_step nstep q_nstep",
    "agent": "mac",
    "agent.hidden_dim": "hidden_dim hidden_size rnn_hidden_dim n_hidden",
    "mixer.embed_dim": "mixing_embed_dim embed_dim",
    "exploration.epsilon_start": "eps_start epsilon",
    "exploration.epsilon_finish": "eps_finish eps_end epsilon_end final_epsilon",
    "exploration.epsilon_anneal_steps": "epsilon_anneal_time eps_decay epsilon_decay anneal_steps",
    "rollout": "runner",
    "trainer.log_every_n_steps": "log_interval runner_log_interval learner_log_interval",
    "trainer.accelerator": "device accelerator use_cuda cuda",
    "trainer.devices": "gpus devices n_gpus num_gpus",
    "env": "env_args env_name environment game task scenario",
    "algorithm": "algo alg learner",
    "env.scenario": "map_name map scenario layout task id",
    "env.layout": "map_name map scenario layout task id",
    "env.task": "map_name map scenario layout task id",
    "env.map_name": "map_name map scenario layout task id",
    "env.id": "map_name map scenario layout task id",
    "env.episode_limit": "max_steps max_cycles time_limit horizon episode_length",
    "env.max_steps": "max_cycles time_limit horizon episode_length episode_limit",
    "env.horizon": "max_cycles time_limit max_steps episode_length episode_limit",
}
"""Key -> what others call it, the part after the last dot."""


def meant_by(key: str) -> list[str]:
    """Return the keys that somebody may mean who types an unknown one, the likeliest first.

    One in a section means a key of that section; one without may mean any.
    """
    section, _, name = key.rpartition(".")
    found = [known for known, others in _KEYS.items() if name.lower() in others.split()]
    if section:
        own = [known for known in found if known.startswith(f"{section}.")]
        return own or ([] if section == "env" else found)
    return [known for known in found if not known.startswith("env.")]
