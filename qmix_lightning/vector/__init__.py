"""Step environments together, in this process or in workers, with fault tolerance; show a game as its team's."""
