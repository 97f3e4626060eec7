"""A host among its peers, without a coordinator: whom it knows, what it pushes, pulls and repairs."""
