"""Other libraries at the same work, through the interfaces they offer; none of their code is copied here."""
