"""Other families than SmolVLM: tiny models of each, made from a seed without a hub, to try the comparison on."""
