"""What a job is: specs, resources, state machine and launch plans. Pure: no I/O."""
