package identity

import (
	"converge/producers/httpapi"
)

// content is what a client decides.
type content struct {
	email, displayName, address string
	marketingOptIn              bool
}

// edit is what a change makes of the content that is there. It is called with contents that never were, too.
type edit func(content) content

var (
	email       = httpapi.Matching(`^[^\s@]{1,64}@[^\s@]{1,190}$`, "must be an e-mail address")
	displayName = httpapi.Matching(`^.{1,200}$`, "must be a string of 1 to 200 characters, on one line")
	address     = httpapi.Matching(`^(?s).{0,500}$`, "must be a string of up to 500 characters")
)

// readOnly are the members of a profile that clients send back as they got them.
var readOnly = []string{"user_id", "version", "updated_at"}

// readPut returns the edit of a PUT: a new content, whole.
func readPut(body *httpapi.Body) (edit, error) {
	o := body.Object()
	o.Ignore(readOnly...)
	c := content{
		email:          o.String("email", email),
		displayName:    o.String("display_name", displayName),
		address:        o.OptionalString("address", "", address),
		marketingOptIn: o.OptionalBool("marketing_opt_in", false),
	}
	return func(content) content { return c }, body.Err()
}

// readPatch returns the edit of a PATCH (RFC 7396): members that are not there stay, null makes a member its
// default. What has no default cannot be null.
func readPatch(body *httpapi.Body) (edit, error) {
	o := body.Object()
	o.Ignore(readOnly...)
	patch := func(c content) content {
		c.email = o.OptionalString("email", c.email, email)
		c.displayName = o.OptionalString("display_name", c.displayName, displayName)
		if o.Null("address") {
			c.address = ""
		} else {
			c.address = o.OptionalString("address", c.address, address)
		}
		if o.Null("marketing_opt_in") {
			c.marketingOptIn = false
		} else {
			c.marketingOptIn = o.OptionalBool("marketing_opt_in", c.marketingOptIn)
		}
		return c
	}
	patch(content{}) // notes what is wrong, which does not depend on what is there
	return patch, body.Err()
}

// changed returns the names of the members that two contents differ in.
func changed(from, to content) []string {
	names := []string{}
	if from.email != to.email {
		names = append(names, "email")
	}
	if from.displayName != to.displayName {
		names = append(names, "display_name")
	}
	if from.address != to.address {
		names = append(names, "address")
	}
	if from.marketingOptIn != to.marketingOptIn {
		names = append(names, "marketing_opt_in")
	}
	return names
}

// done reports whether the edit, applied to the content before this one, gives this one. last names the
// members in which the two differ. What they were is not known, and need not be: the edit gives this content
// from any values of these members, or not from theirs. For each member it either sets, whatever was there, or
// leaves alone.
func (c content) done(e edit, last []string) bool {
	before := c
	for _, name := range last {
		switch name {
		case "email":
			before.email += "?"
		case "display_name":
			before.displayName += "?"
		case "address":
			before.address += "?"
		case "marketing_opt_in":
			before.marketingOptIn = !before.marketingOptIn
		}
	}
	return e(before) == c
}
