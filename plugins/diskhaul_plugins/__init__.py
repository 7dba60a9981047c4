"""The backends that come with diskhaul, one module each, grouped by stage. `diskhaul_plugins.builtin` announces them."""
