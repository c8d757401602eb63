"""What moderators work with: the terminal for now."""
