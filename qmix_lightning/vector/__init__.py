"""Step PettingZoo environments together, in this process or in worker processes, with fault tolerance."""
