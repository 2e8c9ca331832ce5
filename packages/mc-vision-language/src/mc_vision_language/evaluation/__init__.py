"""The protocols by which the tasks are measured."""
