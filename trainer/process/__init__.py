"""The life of a rank: its link to the agent, notices, and how it ends."""
