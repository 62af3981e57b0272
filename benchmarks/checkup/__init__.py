"""The measured record of `mmlib.checkup`: faulty and healthy programs, and the table that is made of them."""
