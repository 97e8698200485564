"""The built-in metrics: accuracy, perplexity, latency, throughput, size, memory, discrepancy, and the user's own."""
