"""The `sdpn` command: one file for each subcommand, each a function of plain arguments that returns an exit code."""
