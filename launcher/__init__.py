"""Third floor: the ``distill`` command, the processes of a run, plan and doctor."""
