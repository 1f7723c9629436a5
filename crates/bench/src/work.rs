//! Chooses the carts and items of the commands.

use std::sync::{Mutex, PoisonError};

use cart_events::CartId;

use crate::{add_item::AddItem, database::Products};

/// Commands on a hot cart before the next cart takes its place. A real cart has no thousands of items in its history.
const HOT_CART_COMMANDS: u32 = 300;

/// The carts that commands go to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Carts {
    /// A task adds this many items to a cart, then takes another.
    Own { items: u32 },
    /// All tasks use the same cart.
    Hot,
}

/// Chooses the carts and items of the commands.
pub(crate) struct Work {
    carts: Vec<Mutex<(CartId, u32)>>,
    commands_a_cart: u32,
    hot: bool,
    products: Products,
}

impl Work {
    pub(crate) fn new(carts: Carts, products: Products, tasks: usize) -> Self {
        let (count, commands_a_cart, hot) = match carts {
            Carts::Own { items } => (tasks, items, false),
            Carts::Hot => (1, HOT_CART_COMMANDS, true),
        };
        Self { carts: (0..count).map(|_| Mutex::new((CartId::new(), 0))).collect(), commands_a_cart, hot, products }
    }

    /// Each task adds one item to each of its own carts.
    pub(crate) fn one_item_each(products: Products, tasks: usize) -> Self {
        Self::new(Carts::Own { items: 1 }, products, tasks)
    }

    pub(crate) fn next(&self, task: usize) -> Result<AddItem, String> {
        let mut cart = self.carts[task % self.carts.len()].lock().unwrap_or_else(PoisonError::into_inner);
        if cart.1 == self.commands_a_cart {
            *cart = (CartId::new(), 0);
        }
        cart.1 += 1;
        AddItem::new(cart.0, self.products.any(), self.hot).map_err(|error| error.to_string())
    }
}
