"""What tests share: environments, learners, data and commands to try things on."""
