"""What stands in for systems that tests do not have."""
