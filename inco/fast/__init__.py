"""What only saves time or memory: results are the same without it. Skip it on a first reading."""
