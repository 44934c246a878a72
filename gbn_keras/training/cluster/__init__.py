"""How the machines of a cluster find each other."""
