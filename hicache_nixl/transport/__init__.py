"""The NIXL side: agent and plugins, registrations and transfers, and page files."""
