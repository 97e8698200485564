"""The runtime: reads workflows, finds plugins, keeps the store, drives steps on hosts. Knows no framework."""
