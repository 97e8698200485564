"""Where jobs run: this machine, another environment, another machine, a cluster."""
