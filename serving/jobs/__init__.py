"""Asynchronous requests: rows that outlive the gateway that took them."""
