"""Pictures, drawn from saved numbers alone. Only this package imports matplotlib."""
