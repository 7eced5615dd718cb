"""What every test of trackers has: no account, and a server of its own where it asks for one."""

from wandb_server import no_account, server  # noqa: F401  # fixtures
