"""Calls between hosts: server, client, trust, quotas, and the one pipeline that every call goes through."""
