"""What the subcommands of `frugal` do; each module has `main(arguments)` and is imported when its command runs."""
