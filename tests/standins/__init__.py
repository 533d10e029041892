"""Stand-ins for systems that tests do not have."""
