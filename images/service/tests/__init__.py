"""Tests of the service. Those that need PyTorch are skipped where it is missing; the test target has it."""
