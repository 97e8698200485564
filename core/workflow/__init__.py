"""Reading a workflow file: JSON or YAML, upgraded from older forms, validated, every fault located."""
