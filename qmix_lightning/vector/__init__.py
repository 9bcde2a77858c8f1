"""Vector environments: the PettingZoo adapter, stepping in this process or in workers, supervision."""
