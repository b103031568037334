"""The paper's own runs, ready for whoever has the machines. README.md says how to start them and what was tested."""
