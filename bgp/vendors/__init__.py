"""The router's side (`bgp.router`) in each vendor's words."""
