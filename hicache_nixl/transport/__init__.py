"""The NIXL side: agent and plugins, registrations and transfers, and the page files that are transferred."""
