"""The command `rmtllmf`: one file per sub-command, whose imports wait until it runs."""
