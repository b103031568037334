"""The evidence: one file per experiment, its committed results and figures. `make evidence` reruns them all."""
