"""Any model's forward pass, recorded once and cut where one tensor crosses."""
