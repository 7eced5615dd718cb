"""What runs on the instruction sets of other machines than the one at hand."""
