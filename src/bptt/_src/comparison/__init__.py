"""How credits are compared: tasks, measures, verdict."""
