"""Where run directories live: one small protocol, and what is built on nothing but it."""
