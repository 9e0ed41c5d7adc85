"""The command `rmtllmf`: one file a sub-command, each importing what it runs only when it runs."""
