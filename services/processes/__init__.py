"""Calls between processes of the platform: Arrow frames over HTTP."""
