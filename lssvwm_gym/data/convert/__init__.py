"""Public recordings, each set in its own layout, and how they become episodes."""
