"""Every recipe on a small scale: the one way in which recipes are made small, and reference curves of such runs."""
