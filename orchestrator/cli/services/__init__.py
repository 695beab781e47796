"""What several commands do that is more than asking and showing."""
