"""The evidence: each experiment a script, its committed results and its plot. `make evidence` reruns them all."""
