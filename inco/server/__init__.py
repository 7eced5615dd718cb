"""What the server does with the uploads of a round: aggregation, transforms, server optimizers."""
