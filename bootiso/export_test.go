package bootiso

// TetherPackages is for a test.
func TetherPackages() []string { return tetherPackages() }
