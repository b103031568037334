"""What examples, benchmarks and experiments share: counted costs, texts and weights to download, the machine's name."""
