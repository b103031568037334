"""Whether a Nexus model is the same function as its source."""
